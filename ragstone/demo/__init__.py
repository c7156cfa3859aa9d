"""The invented almanac that `ragstone demo` works on. Knows nothing about models."""
