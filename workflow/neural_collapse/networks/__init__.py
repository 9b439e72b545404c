"""The networks: recipes (plain data, without torch), and what builds them (with torch)."""
