"""A trained model in use: encoding, search, export."""
