//! The backend floor of Firebrick: what reaches below safe Rust. No layer and no model lives here.

pub mod map;
