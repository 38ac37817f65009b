"""A work directory as one HTML page: report.html, which every run of a recipe leaves."""
