"""To and from folders of Hugging Face: names, configuration, import and export, one tensor at a time."""
