"""Parts of a live view on a terminal: lines of styled text, bars, keys, and the application that shows them."""
