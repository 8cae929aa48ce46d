"""Detection sets without identities: registration, file formats and loader."""
