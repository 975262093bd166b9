import { defineConfig } from "vitest/config";

export default defineConfig({
  // The page may be served below a path (a reverse proxy's prefix), so every address in it is relative.
  base: "./",
  build: {
    outDir: "static",
    assetsDir: "assets",
    emptyOutDir: true,
    target: "es2022",
    // A data: address would need a wider content security policy for nothing.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    // Two pages: what only the operator's needs is in no file that the chat page loads.
    rolldownOptions: { input: ["index.html", "operator.html"] },
  },
  // For `npm run dev`: a coordinator on this machine answers the API.
  server: {
    proxy: Object.fromEntries(["/api", "/v1", "/pool", "/healthz"].map((path) => [path, "http://127.0.0.1:8000"])),
  },
  test: { environment: "jsdom", include: ["test/**/*.test.ts"] },
});
