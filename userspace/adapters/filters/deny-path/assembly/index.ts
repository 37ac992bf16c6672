// Denies paths by prefix, and marks every answer it lets through. Configuration and outcomes: README.md.

export * from "@solo-io/proxy-runtime/proxy"; // what the host calls
import {
  Context,
  FilterHeadersStatusValues,
  GrpcStatusValues,
  LogLevelValues,
  RootContext,
  log,
  registerRootContext,
  send_local_response,
  stream_context,
} from "@solo-io/proxy-runtime";
import { BufferTypeValues, get_buffer_bytes } from "@solo-io/proxy-runtime/runtime";
import { JSONDecoder, JSONHandler } from "assemblyscript-json";

const NAME = "deny-path";

/** Reads `{"prefixes": ["/admin"]}`, and nothing else. */
class Config extends JSONHandler {
  prefixes: string[] = [];
  /** What is wrong, if something is. */
  wrong: string = "";
  private depth: i32 = 0;
  /** Whether what comes now is an item of `prefixes`. */
  private listed: bool = false;

  pushObject(name: string): bool {
    if (this.depth++ > 0) this.unknown(name);
    return true;
  }

  pushArray(name: string): bool {
    this.listed = name == "prefixes";
    if (!this.listed) this.unknown(name);
    return true;
  }

  popArray(): void {
    this.listed = false;
  }

  setString(name: string, value: string): void {
    if (!this.listed) this.unknown(name);
    else if (!value.startsWith("/")) this.refuse("prefix `" + value + "`: begin it with a slash");
    this.prefixes.push(value);
  }

  setBoolean(name: string, value: bool): void {
    this.unknown(name);
  }

  setNull(name: string): void {
    this.unknown(name);
  }

  setInteger(name: string, value: i64): void {
    this.unknown(name);
  }

  setFloat(name: string, value: f64): void {
    this.unknown(name);
  }

  private unknown(name: string): void {
    this.refuse((name == "" ? "" : "`" + name + "`: ") + "write `{\"prefixes\": [\"/admin\"]}`");
  }

  /** The first thing that is wrong is told. */
  private refuse(reason: string): void {
    if (this.wrong == "") this.wrong = reason;
  }
}

/** One a module: holds the configuration. */
class Plugin extends RootContext {
  prefixes: string[] = [];

  onConfigure(size: u32): bool {
    // Not the SDK's own: that hands the host the size where a pointer belongs.
    const json = get_buffer_bytes(BufferTypeValues.PluginConfiguration, 0, size);
    const config = new Config();
    // Aborts on what is no JSON: a refusal as well.
    if (size > 0) new JSONDecoder<Config>(config).deserialize(Uint8Array.wrap(json));
    if (config.wrong == "" && config.prefixes.length == 0) config.wrong = "`prefixes` says no path to deny";
    if (config.wrong != "") {
      log(LogLevelValues.error, NAME + ": configuration refused: " + config.wrong);
      return false;
    }
    this.prefixes = config.prefixes;
    return true;
  }

  createContext(context_id: u32): Context {
    return new Request(context_id, this);
  }
}

/** One a request. */
class Request extends Context {
  private plugin: Plugin;

  constructor(context_id: u32, plugin: Plugin) {
    super(context_id, plugin);
    this.plugin = plugin;
  }

  onRequestHeaders(count: u32, end_of_stream: bool): FilterHeadersStatusValues {
    const path = stream_context.headers.request.get(":path");
    for (let i = 0; i < this.plugin.prefixes.length; i++) {
      if (path.startsWith(this.plugin.prefixes[i])) {
        const body = String.UTF8.encode(NAME + ": " + this.plugin.prefixes[i] + " is closed\n");
        send_local_response(403, NAME, body, [], GrpcStatusValues.Unknown);
        return FilterHeadersStatusValues.StopIteration;
      }
    }
    return FilterHeadersStatusValues.Continue;
  }

  onResponseHeaders(count: u32, end_of_stream: bool): FilterHeadersStatusValues {
    stream_context.headers.response.add("x-adapter", NAME);
    return FilterHeadersStatusValues.Continue;
  }
}

// Under the root id that a host gives if nobody says one.
registerRootContext((context_id: u32) => new Plugin(context_id), "");
