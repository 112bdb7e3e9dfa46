"""What runs have shown, as one page that opens anywhere, and as pictures on dashboards."""
