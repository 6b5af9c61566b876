//! What only this provider has.
