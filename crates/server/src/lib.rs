//! The provider's side: accounts, entitlements, locks and repositories over HTTPS.
