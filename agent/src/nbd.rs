//! Network Block Device: client and server.
