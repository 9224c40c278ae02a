//! metal-anvil
