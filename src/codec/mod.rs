//! NAL units.
