"""What training on selected positions gave."""
