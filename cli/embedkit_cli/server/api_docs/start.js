// Swagger UI over /openapi.json; where the server wants a key, the page asks for it and keeps it for this tab.
const KEY = "embedkit-key";

async function start() {
  const told = () => {
    const key = sessionStorage.getItem(KEY);
    return key ? { Authorization: `Bearer ${key}` } : {};
  };
  let answer = await fetch("/openapi.json", { headers: told() });
  if (answer.status === 401) {
    const key = window.prompt("API key of this server");
    if (key) sessionStorage.setItem(KEY, key.trim());
    answer = await fetch("/openapi.json", { headers: told() });
  }
  const body = await answer.json();
  if (!answer.ok) {
    document.getElementById("api").textContent = body.error.message;
    return;
  }
  SwaggerUIBundle({
    spec: body,
    dom_id: "#api",
    validatorUrl: null,
    requestInterceptor: (request) => {
      request.headers = { ...told(), ...request.headers };
      return request;
    },
  });
}

start();
