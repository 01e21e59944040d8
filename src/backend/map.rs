//! placeholder until the checkpoint branch lands
