"""What every layer uses: data, metrics, settings, records of what was made, logs, seeds and files."""
