"""Example tasks for fine-tuning: commands that write one, and texts written for this project."""
