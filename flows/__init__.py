"""The order: rounds on a page, campaigns under Prefect, the command line. Imports all rooms; nobody imports it."""
