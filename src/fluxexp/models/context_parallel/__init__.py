"""One image on several ranks: attention over tokens that the ranks hold in parts."""
