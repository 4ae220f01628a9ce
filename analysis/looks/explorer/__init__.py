"""A page that shows, for any click on a picture, where the detector looked."""
