//! A version as a disk that can be read now: the cache, fetching, traces and the NBD export.
