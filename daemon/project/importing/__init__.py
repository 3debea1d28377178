"""Data from elsewhere: urls and other repositories, imported with a pointer that says where from, or just brought here."""
