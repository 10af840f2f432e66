# escape=`

FROM mcr.microsoft.com/windows/servercore:ltsc2022
SHELL ["powershell", "-command"]
WORKDIR C:\app
COPY src\ C:\app\
RUN New-Item -ItemType Directory C:\Example; `
    Write-Host done
VOLUME C:\data
