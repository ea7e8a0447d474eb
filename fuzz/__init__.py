"""Hostile input, made from a seed: for the decoders (``codec``), and for a lighthouse at work (``live``)."""
