"""Files of rows become a folder of encoded rows and a report on them."""
