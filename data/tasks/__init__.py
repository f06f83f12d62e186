"""Example tasks for fine-tuning."""
