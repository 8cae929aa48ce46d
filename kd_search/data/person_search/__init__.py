"""Person search sets: registration, file formats, mapper and loaders."""
