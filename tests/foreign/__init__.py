"""What the tests of foreign code share: small images, a small model like CLIP, and a config."""
