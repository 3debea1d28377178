"""millpond: a storage daemon for the dataset and model versions of DVC repositories."""
