"""The search for the artifact that keeps a time and a mask budget on one device."""
