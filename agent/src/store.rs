//! Object storage behind one door.
