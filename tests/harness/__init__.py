"""What tests share: stages, programs, proxies, servers of their own, and the children that are killed."""
