"""The networks: recipes (plain data, without torch), and their construction (with torch)."""
