// Exists to own the precompiled header that the API tests share.
