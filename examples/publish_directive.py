#!/usr/bin/env python3
"""Publishes `invalidate products/123 v42` over Forebay's Redis bus: publish_directive.py [HOST:PORT [CHANNEL]]
With --print alone it prints the event in hexadecimal instead. The manual's chapter on events has the formats."""
import os, socket, struct, sys

# What the bus itself calls: an entry says which it is, so that a listener notices what is missing before it.
ADD = """
redis.call('HSETNX', KEYS[2], 'in', ARGV[1])
local incarnation = redis.call('HGET', KEYS[2], 'in')
local number = tonumber(redis.call('HGET', KEYS[2], 'no') or '0')
for i = 3, #ARGV do
  number = number + 1
  local text = string.format('%.0f', number)
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'in', incarnation, 'no', text, 'body', ARGV[i])
  redis.call('HSET', KEYS[2], 'no', text)
end
return #ARGV - 2
"""

def crc32c(data, crc=0xFFFFFFFF):
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF

def part(data): return struct.pack("<I", len(data)) + data

directive = struct.pack("<BQ", 1, 42) + part(b"products") + part(struct.pack("<Q", 123))  # the cache's keys are u64
event = struct.pack("<BB4Q", 1, 1, 0, 0, 0, 0) + directive  # format 1, directives; zeros: said by no layer
event += struct.pack("<I", crc32c(event))
if sys.argv[1:] == ["--print"]: sys.exit(print(event.hex()))
address, channel = (sys.argv[1:] + ["127.0.0.1:6379", "forebay"][len(sys.argv) - 1:])[:2]
stream, retained = b"{forebay:%s}" % channel.encode(), b"65536"  # as many entries as the owner's bus retains
call = [b"EVAL", ADD.encode(), b"2", stream, stream + b":place", os.urandom(8).hex().encode(), retained, event]
with socket.create_connection(address.rsplit(":", 1), timeout=5) as connection:
    connection.sendall(b"*%d\r\n" % len(call) + b"".join(b"$%d\r\n%s\r\n" % (len(item), item) for item in call))
    reply = connection.makefile("rb").readline().strip()
if reply != b":1": sys.exit("publishing to %s: the server answered %s" % (stream.decode(), reply.decode()))
