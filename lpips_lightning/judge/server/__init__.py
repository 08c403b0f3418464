"""The web page of a study: its files, what may ask for it, images as browsers get them, and the server."""
