-- Prints what was measured as one line of JSON. Only done() is defined, so the
-- load itself is wrk's own C code.
done = function(summary, latency, requests)
   local e = summary.errors
   print(string.format(
      '{"requests":%d,"bytes":%d,"durationUs":%d,"p50Us":%d,"p99Us":%d,"status":%d,"failed":%d}',
      summary.requests, summary.bytes, summary.duration, latency:percentile(50), latency:percentile(99),
      e.status, e.connect + e.read + e.write + e.timeout))
end
