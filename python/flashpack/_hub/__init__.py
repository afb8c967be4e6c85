"""Files of repositories."""
