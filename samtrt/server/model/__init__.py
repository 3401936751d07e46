"""The model behind the API: what waits, what is computed, what is kept."""
