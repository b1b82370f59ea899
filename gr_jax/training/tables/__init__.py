"""Large embedding tables: look up the entries of a batch, apply their update, exchange them over a mesh."""
