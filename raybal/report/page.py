def write_report(store, pool, sidecar):
    return "none"
