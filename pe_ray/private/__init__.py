"""Zone 1: code that may see private records. Nothing here returns to the driver but references."""
