//! LLDP: what the switches say, and what is done when they say too little.
