"""What a clip shows, and where: captions, words, masks and paths of its entities."""
