"""The recipe: its tables, the rules between them, the losses it can name, and judge templates."""
