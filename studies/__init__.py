"""The study files that come with lesionsearch: ``studies/*.yaml``."""
