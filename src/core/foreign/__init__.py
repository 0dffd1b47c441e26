"""What comes from strangers: reading their files without running or trusting them, showing their text without harm."""
