//! What programs say to each other: wire types, their conversions, and the clients of server and host.
