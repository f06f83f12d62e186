"""Documents, cleaned, and which are held out for validation."""
