"""The recipe: its tables and rules, the losses it can name, and judge templates."""
